"""Is every part of a cluster there and set up well, and if not, what is to be done?"""
