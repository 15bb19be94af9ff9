"""The look that all HTML pages share: a base template, a style sheet and colours."""
