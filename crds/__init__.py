"""The custom resource definitions and sample manifests, as package data."""
