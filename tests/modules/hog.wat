;; Wants memory: until it is refused, or as much as it is told.
(module
  (memory (export "memory") 1)
  (func (export "main") (loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
