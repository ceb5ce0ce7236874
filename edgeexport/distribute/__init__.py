"""Registries: where bundles are published and pulled."""
