const form = document.getElementById("login");
const problem = document.getElementById("problem");

form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.textContent = "";
    const body = {
        type: "m.login.password",
        identifier: { type: "m.id.user", user: document.getElementById("user").value },
        password: document.getElementById("password").value,
    };
    const query = new URLSearchParams(window.location.search);
    for (const name of ["device_id", "initial_device_display_name"]) {
        if (query.has(name)) {
            body[name] = query.get(name);
        }
    }
    if (query.has("refresh_token")) {
        body.refresh_token = query.get("refresh_token") === "true";
    }
    try {
        const answer = await fetch("../../../client/v3/login", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(body),
        });
        const response = await answer.json();
        if (!answer.ok) {
            problem.textContent = response.error || "The server refused.";
            return;
        }
        form.hidden = true;
        problem.textContent = "";
        if (window.matrixLogin && window.matrixLogin.onLogin) {
            window.matrixLogin.onLogin(response);
        }
    } catch (error) {
        problem.textContent = "The server cannot be reached.";
    }
});
