"""The commands of `linewatch`: one module each, imported when its command runs.

A module has one function, `command`, that typer turns into options and help, and a row in
`pipeline.cli.COMMANDS`. What it does lies elsewhere; here are arguments, progress and words.
"""
