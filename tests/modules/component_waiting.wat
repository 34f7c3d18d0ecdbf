;; A component that waits inside the engine, where nothing interrupts it, or makes the engine keep more and more.
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $same (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $same))))))
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core module $room (memory (export "memory") 800)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
  (core instance $r (instantiate $room))
  (core func $bytes (canon lower (func $random "get-random-bytes")
    (memory (core memory $r "memory")) (realloc (core func $r "realloc"))))
  (core module $m
    (import "host" "block" (func $block (param i32)))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "random" (func $random (param i64 i32)))
    (func (export "sleep") (param $seconds i64)
      (call $block (call $subscribe (i64.mul (local.get $seconds) (i64.const 1000000000)))))
    ;; Asks for random bytes again and again: the engine has them all at hand before it copies them.
    (func (export "ask") (param $bytes i64) (loop $again
      (call $random (local.get $bytes) (i32.const 16))
      (br $again)))
    (func (export "spin") (loop $again (br $again)))
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
  (core instance $i (instantiate $m (with "host" (instance
    (export "block" (func $block)) (export "subscribe" (func $subscribe)) (export "random" (func $bytes))))))
  (func (export "sleep") (param "seconds" u64) (canon lift (core func $i "sleep")))
  (func (export "ask") (param "bytes" u64) (canon lift (core func $i "ask")))
  (func (export "spin") (canon lift (core func $i "spin")))
  (func (export "add") (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
)
