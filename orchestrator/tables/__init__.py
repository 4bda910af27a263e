"""Tables: from records to numbers, columns and the formats they are printed in."""
