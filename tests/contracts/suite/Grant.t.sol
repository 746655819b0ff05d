// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IProviderRegistry} from "src/interfaces/IProviderRegistry.sol";
import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {Base} from "./Base.sol";

contract GrantTest is Base {
    // it locks the deposit from the payer's escrow and counts it
    function test_grant_open() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        ISessionVault.Terms memory terms = grantTerms(grant);
        openGranted(terms, DEPOSIT, grant);
        eq(channel(vault.channelId(terms)).deposit, DEPOSIT, "deposit");
        eq(free(payer), ESCROW - DEPOSIT, "escrow");
        (uint88 committed, bool verified, bool revoked) = vault.grants(vault.grantId(grant));
        eq(committed, DEPOSIT, "committed");
        require(verified && !revoked, "state");
    }

    // it needs the payer's signature no more
    function test_grant_again() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        openGranted(grantTerms(grant), 2e6, grant);
        openGrantedWith(STUDENT, grantTerms(grant), 2e6, grant, "", "");
        eq(free(payer), ESCROW - 4e6, "escrow");
    }

    // it reverts for the key
    function test_grant_otherKey() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, grant.key);
        refused(STRANGER, grantTerms(grant), 2e6, grant, refusal);
    }

    // it reverts until a lease closes and gives back
    function test_grant_cap() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        ISessionVault.Terms memory first = grantTerms(grant);
        openGranted(first, 5e6, grant);
        ISessionVault.Terms memory second = grantTerms(grant);
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_GrantUsedUp.selector, 10e6, 8e6);
        refused(STUDENT, second, 5e6, grant, refusal);
        close(claim(first, 100_000));
        (uint88 committed,,) = vault.grants(vault.grantId(grant));
        eq(committed, 100_000, "spent stays committed");
        openGranted(second, 5e6, grant);
    }

    // it reverts for the rate
    function test_grant_rate() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        ISessionVault.Terms memory terms = grantTerms(grant);
        terms.rate = RATE + 1;
        bytes memory refusal =
            abi.encodeWithSelector(ISessionVault.SessionVault_RateAboveGrant.selector, RATE + 1, RATE);
        refused(STUDENT, terms, 2e6, grant, refusal);
    }

    // it reverts for the time
    function test_grant_late() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        skip(30 days);
        openGranted(grantTerms(grant), 2e6, grant);
        skip(1);
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_Expired.selector, grant.validUntil);
        refused(STUDENT, grantTerms(grant), 2e6, grant, refusal);
    }

    // it reverts for the mismatch
    function test_grant_mismatch() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        bytes32 id = vault.grantId(grant);
        ISessionVault.Terms memory terms = newTerms();
        refused(STUDENT, terms, 2e6, grant, mismatch(0, id));
        terms = grantTerms(grant);
        terms.payer = vm.addr(STRANGER);
        refused(STUDENT, terms, 2e6, grant, mismatch(id, id));
        terms = grantTerms(grant);
        terms.token = address(0x70);
        refused(STUDENT, terms, 2e6, grant, mismatch(id, id));
    }

    // it reverts for the signature
    function test_grant_forged() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        bytes memory forged = signature(STRANGER, vault.grantId(grant));
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, payer);
        openGrantedWith(STUDENT, grantTerms(grant), 2e6, grant, forged, refusal);
    }

    // it reverts whatever is signed
    function test_grant_zeroKey() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        grant.key = address(0);
        ISessionVault.Terms memory terms = grantTerms(grant);
        bytes memory signed = signature(PAYER, vault.grantId(grant));
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, address(0)));
        vault.openWithGrant(terms, 2e6, uint40(time()), 0, 0, grant, signed);
    }

    // it opens
    function test_grant_policy() external {
        ISessionVault.Grant memory grant = newGrant(policy(), 8e6);
        openGranted(grantTerms(grant), 2e6, grant);
        eq(free(payer), ESCROW - 2e6, "escrow");
    }

    // it reverts for the provider
    function test_grant_policySelf() external {
        ISessionVault.Grant memory grant = newGrant(policy(), 8e6);
        ISessionVault.Terms memory terms = grantTerms(grant);
        terms.provider = grant.key;
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_ProviderRefused.selector, grant.key);
        refused(STUDENT, terms, 2e6, grant, refusal);
    }

    function policy() private returns (address) {
        IProviderRegistry registry =
            IProviderRegistry(deploy("ProviderRegistry", abi.encode(address(token), uint96(100), uint40(1 days))));
        token.mint(provider, 100);
        vm.startPrank(provider);
        token.approve(address(registry), 100);
        registry.register(bytes32("node"), 100);
        vm.stopPrank();
        return address(registry);
    }

    // it opens nothing more, and what is open goes on
    function test_grant_revoked() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        ISessionVault.Terms memory running = grantTerms(grant);
        openGranted(running, 2e6, grant);
        vm.prank(payer);
        vault.revokeGrant(grant);
        bytes32 id = vault.grantId(grant);
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_GrantRevoked.selector, id);
        refused(STUDENT, grantTerms(grant), 2e6, grant, refusal);
        vault.settle(claim(running, 100_000));
        eq(token.balanceOf(provider), 100_000, "paid");
    }

    // it reverts for the caller
    function test_grant_revokedByStranger() external {
        ISessionVault.Grant memory grant = newGrant(address(0), 8e6);
        vm.expectRevert(
            abi.encodeWithSelector(ISessionVault.SessionVault_NotAllowed.selector, vm.addr(STRANGER), payer)
        );
        vm.prank(vm.addr(STRANGER));
        vault.revokeGrant(grant);
    }

    function mismatch(bytes32 expected, bytes32 given) private pure returns (bytes memory) {
        return abi.encodeWithSelector(ISessionVault.SessionVault_WrongGrant.selector, expected, given);
    }

    function refused(
        uint256 key,
        ISessionVault.Terms memory terms,
        uint88 amount,
        ISessionVault.Grant memory grant,
        bytes memory refusal
    ) private {
        openGrantedWith(key, terms, amount, grant, signature(PAYER, vault.grantId(grant)), refusal);
    }
}
