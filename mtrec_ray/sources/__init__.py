"""Sources: raw data of any origin, read in parts; never imports ray."""
