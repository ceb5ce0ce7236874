"""The converters: one file each, named like the step it registers. Files with a leading underscore are shared by them."""
