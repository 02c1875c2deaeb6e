"""bitsandbytes' formats, one file per family."""
