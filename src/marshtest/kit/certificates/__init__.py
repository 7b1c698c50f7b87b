"""Certificates: an audit as a page that somebody who was not there can check."""
