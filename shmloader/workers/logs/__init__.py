"""What worker processes log, on its way to the loop's process: the handler there, records, a ring, its reader here."""
