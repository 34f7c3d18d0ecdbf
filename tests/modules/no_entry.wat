;; Exports functions, but none that is a fallback.
(module (func (export "alpha")) (func (export "beta")))
