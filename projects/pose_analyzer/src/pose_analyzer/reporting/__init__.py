"""Files that say what was seen: JSON for programs, CSV for spreadsheets, HTML for people."""

from pose_analyzer.reporting.angles_csv import write_angles_csv
from pose_analyzer.reporting.document import analysis_schema_json, write_analysis_json
from pose_analyzer.reporting.html import write_report_html

__all__ = ["analysis_schema_json", "write_analysis_json", "write_angles_csv", "write_report_html"]
