"""WebAssembly modules from OCI registries: references, digests, manifests, pulling with verification, a store on disk.

Knows nothing of tasks or proplets and imports nothing of ``proplet.agent`` or ``proplet.manager``.
"""
