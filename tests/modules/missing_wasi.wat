;; Wants a function that WASI does not have, and one with other types than WASI's.
(module (import "wasi_snapshot_preview1" "fd_fly" (func)) (func (export "main")))
