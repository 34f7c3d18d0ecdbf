;; Needs 125 MiB to begin with.
(module (memory (export "memory") 2000) (func (export "main")))
