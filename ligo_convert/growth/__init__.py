"""The growth operator: width and depth methods, maps, plan, initialisation, application, file format."""
