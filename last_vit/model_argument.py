"""Old name of models.py, until every script has the new one."""

from last_vit.models import ModelArgument, parse_model_argument, parse_model_arguments

__all__ = ["ModelArgument", "parse_model_argument", "parse_model_arguments"]
