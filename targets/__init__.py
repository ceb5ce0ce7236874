"""The shipped device profiles: one TOML file each; the file's stem is the target's name."""
