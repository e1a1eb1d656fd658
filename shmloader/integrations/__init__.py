"""Ways into other frameworks: each module needs what it is named after, and nothing here is imported before it is used."""  # noqa: E501
