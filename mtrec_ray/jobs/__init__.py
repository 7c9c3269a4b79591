"""Jobs that join the rooms: evaluation over a lake, the audit, the bundle, the quickstart."""
