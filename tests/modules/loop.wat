;; Never ends.
(module
  (memory (export "memory") 2)
  (func (export "main") (loop (br 0)))
  (func (export "count") (param i64) (result i64) (local i64)
    (loop (local.set 1 (i64.add (local.get 1) (i64.const 1))) (br_if 0 (i64.lt_u (local.get 1) (local.get 0))))
    (local.get 1)))
