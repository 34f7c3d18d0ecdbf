;; Says something on both streams and leaves with a status.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "done\n") (data (i32.const 200) "first\nsecond\n")
  (func $print (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $length))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  ;; The status is the last argument, decimal.
  (func (export "_start") (local $at i32) (local $code i32)
    (call $print (i32.const 1) (i32.const 100) (i32.const 5))
    (call $print (i32.const 2) (i32.const 200) (i32.const 13))
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 1000) (i32.const 2000)))
    (local.set $at (i32.load (i32.add (i32.const 1000) (i32.mul (i32.const 4) (i32.sub (i32.load (i32.const 16)) (i32.const 1))))))
    (loop
      (if (i32.load8_u (local.get $at)) (then
        (local.set $code (i32.add (i32.mul (local.get $code) (i32.const 10)) (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br 1))))
    (call $exit (local.get $code))
    (loop (br 0))))
