"""The command's verbs by what they are about; `pipeline.cli` puts them together."""
