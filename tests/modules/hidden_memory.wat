;; Has a memory that nobody outside can see.
(module (memory 3) (func (export "main") (result i32) (i32.load (i32.const 0))))
