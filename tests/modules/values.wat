;; Every core type in and out, several results, none, and those that have no text.
(module
  (func (export "i32") (param i32) (result i32) local.get 0)
  (func (export "i64") (param i64) (result i64) local.get 0)
  (func (export "f32") (param f32) (result f32) local.get 0)
  (func (export "f64") (param f64) (result f64) local.get 0)
  (func (export "pair") (param i32 f64) (result i64 f64 i32) (i64.extend_i32_s (local.get 0)) (local.get 1) (i32.const -7))
  (func (export "nothing") (param i32))
  (func (export "vector") (result v128 i32) (v128.const i64x2 1 2) (i32.const 5))
  (func (export "takes_vector") (param v128))
  (func (export "reference") (result externref) (ref.null extern))
  (func (export "function") (result funcref) (ref.func 0)))
