"""The parts of report.html.  Each module draws one of them, as Markup, from the report's dict."""
