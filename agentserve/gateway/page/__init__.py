"""The live page at `/ui`: its files, the stream that feeds it, and what each piece of it is made of."""
