"""How to speak to each kind of engine over plain HTTP, behind one Protocol."""
