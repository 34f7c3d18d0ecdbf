;; Sleeps in every way WASI preview 1 knows.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  ;; One clock subscription at 0, its event at 1024, the count at 2048.
  (func $sleep (param $clock i32) (param $timeout i64) (param $flags i32) (result i32)
    (i64.store (i32.const 0) (i64.const 77))
    (i32.store8 (i32.const 8) (i32.const 0))
    (i32.store (i32.const 16) (local.get $clock))
    (i64.store (i32.const 24) (local.get $timeout))
    (i32.store16 (i32.const 40) (local.get $flags))
    (call $poll (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))
  (func $now (param $clock i32) (result i64)
    (drop (call $time (local.get $clock) (i64.const 1) (i32.const 3000)))
    (i64.load (i32.const 3000)))
  (func (export "_start") (drop (call $sleep (i32.const 1) (i64.const 31536000000000000) (i32.const 0))))
  ;; Sleeps for ever, again and again, whatever it is told.
  (func (export "stubborn")
    (loop (drop (call $sleep (i32.const 1) (i64.const 31536000000000000) (i32.const 0))) (br 0)))
  ;; Relative; returns errno, event's user data, event's error, count.
  (func (export "relative") (param $clock i32) (param $ms i64) (result i32 i64 i32 i32)
    (call $sleep (local.get $clock) (i64.mul (local.get $ms) (i64.const 1000000)) (i32.const 0))
    (i64.load (i32.const 1024)) (i32.load16_u (i32.const 1032)) (i32.load (i32.const 2048)))
  ;; Until a moment; returns how many nanoseconds past it the clock was afterwards.
  (func (export "until") (param $clock i32) (param $ms i64) (result i64) (local $due i64)
    (local.set $due (i64.add (call $now (local.get $clock)) (i64.mul (local.get $ms) (i64.const 1000000))))
    (drop (call $sleep (local.get $clock) (local.get $due) (i32.const 1)))
    (i64.sub (call $now (local.get $clock)) (local.get $due)))
  ;; Raw call with anything.
  (func (export "raw") (param i32 i32 i32 i32) (result i32)
    (call $poll (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
  ;; A descriptor subscription and a clock of an hour; returns errno, count, first event's error, bytes, flags.
  (func (export "descriptor") (param $tag i32) (param $fd i32) (result i32 i32 i32 i64 i32)
    (i32.store8 (i32.const 8) (local.get $tag))
    (i32.store (i32.const 16) (local.get $fd))
    (i32.store (i32.const 64) (i32.const 1))
    (i64.store (i32.const 72) (i64.const 3600000000000))
    (call $poll (i32.const 0) (i32.const 1024) (i32.const 2) (i32.const 2048))
    (i32.load (i32.const 2048)) (i32.load16_u (i32.const 1032)) (i64.load (i32.const 1040))
    (i32.load16_u (i32.const 1048))))
