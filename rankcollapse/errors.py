class InputError(ValueError):
    """Bad input: config, data, checkpoint or flag. The message is one sentence: what, what is wrong, what is right."""
