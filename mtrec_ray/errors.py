"""What a user can mend, kept apart from what is our own fault."""


class UserError(ValueError):
    """The user's mistake: the message names the offending value and the mend; the command ends with code 2."""
