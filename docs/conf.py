from __future__ import annotations

import sys
from pathlib import Path

import django
from django.conf import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# autodoc imports models, and these need a configured Django.
settings.configure(
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django_run_cancel",
    ],
    USE_TZ=True,
)
django.setup()

project = "django-run-cancel"
copyright = "the django-run-cancel maintainers"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it in fewer words
napoleon_attr_annotations = False

# Copies the commands of a console block, and neither prompts nor output.
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_title = project
html_show_sourcelink = False
html_copy_source = False
