"""The study's command line: notebooks, parameters, publishing, pages."""
