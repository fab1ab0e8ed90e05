"""Backbone, classifier and the bundle that carries them to serving."""
