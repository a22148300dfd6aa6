"""From scores and a target to the arms that stay. Pure: arrays in, arrays out."""
