;; A reactor: `_initialize` must have run before anything else.
(module
  (global $ready (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $ready (i32.add (global.get $ready) (i32.const 42))))
  (func (export "main") (result i32) (global.get $ready)))
