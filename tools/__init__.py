"""Commands beside the library: data preparation and the quick start. ascend_patch itself imports nothing from
here."""
