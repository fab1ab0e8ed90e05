"""What stands around the picture as HTML: files, worklist, archive, out. `static/` moves it."""

HEAD = (
    '<link rel="stylesheet" href="/page/workplace.css">'
    '<script type="module" src="/page/main.js"></script>'
)
"""Goes into the page's head."""

BANNER = """
<header id="banner"><strong>MedQua</strong>
<span id="research">Research use only. Not a medical device, not for diagnosis.</span>
<form id="who" method="post" action="/logout" hidden><span id="user"></span>
<button>Log out</button></form></header>
<p id="away" class="alarm" role="alert" hidden>The viewer's server does not answer. Trying again
&hellip; The picture on show stays.</p>
<p id="engine" class="alarm" role="alert" hidden></p>
"""

LEFT = """
<section id="files" aria-label="Open files">
<p>Drop DICOM, JPG or PNG files, folders, or a ZIP of them here or on the picture.</p>
<div class="row">
<button type="button" id="open-files" disabled>Open files</button>
<button type="button" id="open-folder" disabled>Open a folder</button>
<button type="button" id="cancel" hidden>Cancel</button>
</div>
<input id="pick" type="file" multiple hidden disabled aria-label="Files">
<progress id="bar-of-files" max="1" value="0" aria-label="Opening files" hidden></progress>
<p id="status" role="status"></p>
<p id="reading-progress" role="status"></p>
</section>
<input id="pick-folder" type="file" webkitdirectory hidden disabled aria-label="Folder">
<details id="archive" hidden><summary>Search the archive <span id="archive-name"></span></summary>
<form>
<label for="a-patient">Patient ID</label><input id="a-patient" name="patient" autocomplete="off">
<label for="a-name">Name</label><input id="a-name" name="name" autocomplete="off">
<label for="a-accession">Accession</label><input id="a-accession" name="accession"
autocomplete="off">
<label for="a-date">Date</label><input id="a-date" name="date" autocomplete="off"
placeholder="YYYYMMDD or from-to">
<button>Search</button>
</form>
<p role="status"></p>
<div class="wide" tabindex="0" role="region" aria-label="Studies found"><table hidden><thead><tr>
<td><span class="unseen">Fetch</span></td><th>ID</th><th>Name</th><th>Date</th><th>Kind</th>
<th>Description</th><th>Images</th></tr></thead><tbody></tbody></table></div>
<button type="button" id="fetch" disabled>Fetch</button>
</details>
<div id="filters">
<input id="search" type="search" placeholder="Filter" aria-label="Filter the studies">
<select id="only" aria-label="Which studies">
<option value="">All</option><option value="read">With findings</option>
<option value="refused">Without findings</option><option value="waiting">Waiting</option>
</select></div>
<fieldset id="studies"><legend>Studies</legend><div id="list"></div>
<p id="none" hidden>No study fits the filter.</p></fieldset>
<section id="refused" aria-label="Not opened" hidden><h2>Not opened</h2>
<ul id="refusals"></ul></section>
<div id="foot"><button type="button" id="samples" disabled>Open sample phantoms</button>
<button type="button" id="close-all" disabled>Close all studies</button></div>
"""

FINDINGS = """
<section id="reading" aria-label="Findings" aria-live="polite">
<p class="quiet">Open a study.</p></section>
"""

HEADER = """
<section aria-label="Header">
<button type="button" id="reveal" disabled>Reveal personal data</button>
<div id="look"><input type="search" placeholder="Search tag, name or value"
aria-label="Search the header"></div>
<p id="header-says" role="status"></p>
<div id="tags"><p class="quiet">Open a study.</p></div></section>
"""

OUT = """
<section id="out" aria-label="Out">
<p class="warn"><strong>Research use only, not for diagnosis.</strong> Every file says so. None has
a patient's name in its own name; the structured report has the patient's data inside.</p>
<p id="may-not">Taking data out needs the role <code>export</code>.</p>
<p id="out-closed">Open a study.</p>
<div id="out-links">
<button type="button" data-kind="report.pdf">Report of one page (PDF)</button>
<button type="button" data-kind="report.dcm">Structured report (DICOM SR)</button>
<button type="button" data-kind="findings.json">Findings (JSON)</button>
<button type="button" data-kind="findings.csv">Findings (CSV)</button>
<button type="button" data-kind="send" id="send">Send the structured report to the archive</button>
<p class="warn">De-identified: names, dates and identifiers are taken out of the header, by the
Basic Profile of DICOM PS3.15. Text <strong>in the picture</strong> stays: look at it first.</p>
<button type="button" data-kind="deidentified.dcm">De-identified image (DICOM)</button>
<p id="sent" role="status"></p>
</div></section>
"""
