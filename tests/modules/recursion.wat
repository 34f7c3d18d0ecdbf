;; Calls itself until the stack ends, or as deep as it is told.
(module
  (func $main (export "main") (call $main) (call $main))
  (func $deep (export "deep") (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0)))))
