"""The audits that a release is expected to have; each name is the start of lines of results.jsonl."""

OF_ALL = ("audit/provenance", "audit/opt_out", "audit/personal_data", "audit/energy")
OF_ENCODERS = ("audit/language_parity", "audit/encoder_bias", "audit/membership_inference")
OF_GENERATORS = ("audit/memorization", "audit/generator_bias")


def expected_audits(embeds: bool, generates: bool) -> tuple[str, ...]:
    """Return the names of the expected audits.

    Args:
        embeds: Whether the release has an encoder.
        generates: Whether it has a generator.
    """
    return OF_ALL + (OF_ENCODERS if embeds else ()) + (OF_GENERATORS if generates else ())
