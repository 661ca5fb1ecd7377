"""The conformance kit: what the suite promises of methods, checked on rows and plug-ins."""
