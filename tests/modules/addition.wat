;; The addition of the project's examples: 42 bytes.
(module (func (export "main") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
