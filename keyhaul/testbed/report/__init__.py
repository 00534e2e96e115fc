"""Reports people can keep: pictures drawn as SVG and pages that need nothing but themselves."""
