"""Documents of a release: model card, legal documents and machine-readable records, from measured facts."""
