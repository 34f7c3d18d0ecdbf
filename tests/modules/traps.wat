;; Every kind of trap a core module can have by itself.
(module
  (memory (export "memory") 1)
  (table 1 funcref)
  (type $nothing (func))
  (func $inner unreachable)
  (func (export "unreachable") (call $inner))
  (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
  (func (export "overflow") (result i32) (i32.div_s (i32.const 0x80000000) (i32.const -1)))
  (func (export "conversion") (result i32) (i32.trunc_f64_s (f64.const nan)))
  (func (export "bounds") (result i32) (i32.load (i32.const 70000)))
  (func (export "null") (call_indirect (type $nothing) (i32.const 0)))
  (func (export "table") (call_indirect (type $nothing) (i32.const 9))))
