"""Floor 4: torch. The only folder of the library that imports torch, and only when it is used."""
