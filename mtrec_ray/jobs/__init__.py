"""Jobs that join the rooms: evaluation over a lake, the quickstart."""
