"""The commands. The only package that prints or exits."""
