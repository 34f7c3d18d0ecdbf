;; Never ends, before anything was called.
(module (func $forever (loop (br 0))) (start $forever) (func (export "main")))
